"""Decisions and values of kernel module management. Pure: nothing here does I/O, reads a clock or knows a service."""
