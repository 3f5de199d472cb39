"""Tests of minray._base."""
