"""A YAML document with the places of its values: what `yamlfile` reads into."""
