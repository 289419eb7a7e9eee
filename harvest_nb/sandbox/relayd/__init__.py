"""The relay: one program in a sandbox that carries processes, files and connections over one byte stream.

Standard library only, and imports within it are relative: the package is baked into the snapshot image as it is, and
started by every provider. The desk's half is `harvest_nb.sandbox.relay`, which shares `frames` with it.

    relay.py serve    a daemon behind a unix socket (containers): outlives the streams attached to it,
                      and ends when its lease lapses
    relay.py attach   joins standard input and output to that daemon's socket
    relay.py lines    the same over lines of text, for a carrier that knows nothing else; with --start it starts
                      the daemon where there is none
    relay.py stdio    serves standard input and output itself and ends with them (the host)
    relay.py status   prints the daemon's lease as JSON

Frames are numbered and kept until the other side acknowledges them, so a stream that was cut is taken up
again without loss or repetition. An unexpected exception ends the program: better than a desk that waits.
"""
