"""The core worker, in every driver and every worker process: owner, references, serialization, execution.

The decisions (``owner``, ``references``) are pure machines; ``service`` feeds them and does the effects;
``local`` is the same contract in process. Import law: ``_base``, ``wire``, ``store``.
"""
