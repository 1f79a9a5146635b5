"""Our authenticator seen from outside: on a virtual smartcard reader and as a virtual USB key.

`iso7816` and `ctaphid` are the two framings, pure; `fido_applet` and `hid_key` carry commands between a framing and the
authenticator (`command_runner`); `vpcd` and `uhid` are the two doors of the operating system. Not here: what the
commands mean (`keyvouch_agent.authenticator`), and how the parts are put together (`keyvouch_agent.served`).
"""
