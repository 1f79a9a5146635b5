"""The device agent: keys in hardware, prompts for their owner, ceremonies with the server."""
