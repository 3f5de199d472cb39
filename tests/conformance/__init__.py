"""The public API's suite. It runs unchanged on minray, on minray's local mode, and on real Ray: see target.py."""
