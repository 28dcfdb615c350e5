"""builder: ensures one unsigned artifact: adopts what the registry has, or turns a user's Dockerfile and a kernel into
a pushed image.

In: build requests. Out: the image's digest in Postgres, and a sign request where signing is asked for. Killed at any
line, its lease runs out and another builder starts over; an image that was pushed already is found and not built again.
"""
