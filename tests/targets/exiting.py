"""A module that ends its process on import."""

import os

os._exit(5)
