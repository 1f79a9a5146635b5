"""How the person is asked. Whatever comes from the server is made inert before it is shown."""
