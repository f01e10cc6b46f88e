"""Whether the product asks of torch_npu only what the real one has, found by reading both and running neither.

`wheels` fetches the real torch_npu; `library` answers what a dotted name is there, from its Python sources and the
operators' schemas in its compiled library; `uses` collects from our sources what they ask of it; `verdict` compares.
"""
