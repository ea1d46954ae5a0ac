"""Consumer groups without a server: who is a member, who owns which partition, and how far each group has come.

``assignors`` is pure arithmetic. ``formats`` knows the bytes of ``__consumer_offsets`` and of a group's table.
``offsets`` commits and reads offsets.
"""
