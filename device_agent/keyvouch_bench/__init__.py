"""Tools for test benches: a real server in a process of its own, scripted devices, the demonstration.

Everything here speaks the public protocol and nothing else; nothing here is imported by server or agent. Keys of
a scripted device live in the memory of the test and protect nobody: use it against test servers only.
"""
