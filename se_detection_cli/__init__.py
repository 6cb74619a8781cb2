"""The commands of `se-det`, one file each.

They are a package next to `se_detection` because importing that imports torch, which takes seconds: here arguments are
parsed first, so that help and a typo are answered at once. A command imports its code when it is run.
"""
