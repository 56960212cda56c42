"""Networks and the files that they come in. What is imported here is imported quickly (`lean_imports`)."""

from ccr_dist.models import lean_imports

lean_imports.install()
