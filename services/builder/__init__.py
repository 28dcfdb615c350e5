"""The builder: turns a user's Dockerfile and a kernel into a pushed image."""
