"""How captioned pictures lie on disk: one module a layout."""
