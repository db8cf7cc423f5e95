"""Text to token stores (prepare), and token stores to batches by position (stream).

Training imports ``batch``, ``sources``, ``catalog``, ``store``, ``packing``, ``mixing``,
``positions``, ``stream`` and ``prefetch``: no TensorFlow, no seqio. Those stand behind ``tasks``,
which ``prepare`` imports only when there is something to build. This file imports nothing, so that
a worker process that only reads text starts in a fraction of a second.
"""
