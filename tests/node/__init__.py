"""Tests of the node: its pure machines alone, its programs as real processes."""
