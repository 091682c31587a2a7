"""Guided decoding inside other libraries' own calls. Each module needs the library it is named after."""
