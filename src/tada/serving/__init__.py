"""``tada serve``: a trained model over HTTP.

upload -> file -> process that decodes (one for each video) -> network (batches of all requests) -> JSON
"""
