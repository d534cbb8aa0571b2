"""Jobs: answers or features of many videos, on one machine or on a Ray cluster, in a folder of shards.

``videos`` lists the videos, ``work`` says what is done with each, ``one_machine`` and ``ray_cluster`` do it, ``shards``
holds the results, and ``run`` puts these together.
"""
