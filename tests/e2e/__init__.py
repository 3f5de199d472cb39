"""Whole sessions in real processes, run from scripts as users run them; Ray makes no such promises."""
