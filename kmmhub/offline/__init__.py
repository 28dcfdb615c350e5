"""Commands that need no server: is a module allowed, what does a kernel get from it, which works would be posted."""
