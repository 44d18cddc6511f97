"""The public library, a file for each subject; `import exltune` gives its names without importing it."""
