"""Pictures as SVG documents, made from plain values: for the web page, for notebooks, for files."""
