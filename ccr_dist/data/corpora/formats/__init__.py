"""How others write captions in files: `readers` of their formats, `writers` of NRCCR's and MLA's. What is where:
`shards/*.yaml`.
"""
