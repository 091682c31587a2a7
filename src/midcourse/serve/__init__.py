"""The server: OpenAI's wire forms and a page, over `decode.engine`."""
