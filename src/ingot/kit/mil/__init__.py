"""A reference interpreter for Core ML's ML programs: a saved package is read, decoded and run in numpy.

``package`` opens the files, ``blobs`` reads stored weights, ``program`` is the graph as plain values, ``constants``
decodes compressed weights, ``ops`` has one function an operation, ``run`` executes, ``model`` is what others use.
It is a reference for numbers; Core ML's own kernels order their sums otherwise (decision 21).
"""
