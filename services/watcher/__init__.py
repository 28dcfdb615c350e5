"""watcher: the only reader of the hub's watch streams.

In: ManagedClusters, ManagedClusterModules, ManifestWorks, and ConfigMaps and Secrets of the operator's namespace.
Out: facts in Postgres, and an announcement of each change, committed together. It takes no decision. Killed at any
line, it lists again and stores what differs.
"""
