"""Rows to figures, tables, charts and a page."""
