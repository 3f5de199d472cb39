"""Tests of node.transfers."""
