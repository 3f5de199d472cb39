"""Whole sessions in real processes, run from scripts as users run them. Only minray: Ray makes no such promises."""
