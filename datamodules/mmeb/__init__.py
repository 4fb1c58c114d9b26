"""MMEB-V2: 78 test tasks of pictures, videos and pages, read from the data sets of the hub that lie on disk.

``table`` lists the tasks, ``profiles`` the ways to show them, ``suite`` opens and checks them; README.md says where the files lie.
"""
