"""Check that the product uses only what the real torch_npu has, by reading both and running neither.

`wheels` downloads the real torch_npu. `library` finds the meaning of a dotted name in its Python sources and in the
operators' schemas of its compiled library. `uses` collects our uses from our sources, and `verdict` compares.
"""
