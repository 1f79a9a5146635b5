"""What the `keyvouch` command does, one module for each group of commands.

`parser` describes them all and imports nothing heavy; `invocation` runs one of them; `output` shows the results.
"""
