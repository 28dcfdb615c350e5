"""dispatcher: decides, and is the only writer to the hub's API.

In: announcements of changes; for each, the stored facts. Out: wanted artifacts, ManifestWorks, the status and the
finalizer of modules. Killed at any line, it reads the facts again and does what is still missing.
"""
