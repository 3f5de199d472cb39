"""The public API's suite: it runs unchanged on minray, its local mode, and real Ray. See target.py."""
