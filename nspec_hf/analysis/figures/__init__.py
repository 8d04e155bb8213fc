"""Figures of both papers; the only files that import matplotlib."""
