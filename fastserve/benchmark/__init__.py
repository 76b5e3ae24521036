"""What bench/*.py run: the state of the cores, the machine's roofs, fair turns and lines that stand alone."""
