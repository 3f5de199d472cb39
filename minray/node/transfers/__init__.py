"""Objects on their way between nodes: who asks whom (``pulls``, ``lending``), and the bytes (``channel``).

The drawing is in ``service.py``.
"""
