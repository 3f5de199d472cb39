"""The command line: ``minray COMMAND …``. One module or folder per command, ``main`` only dispatches."""
