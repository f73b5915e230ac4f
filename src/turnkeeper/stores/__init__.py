"""Where sessions are kept: every statement once in `sql`, a thin driver for each database."""
