"""Consumer groups without a server: who is a member, who owns which partition, and how far each group has come.

``assignors`` is pure arithmetic. ``formats`` knows the bytes of ``__consumer_offsets``.
``offsets`` commits and reads offsets. ``table`` is a group's shared page with its lock; ``membership`` is one
consumer's place in it; ``admin`` describes, lists and resets groups from outside.
"""
