"""`vpmu-agent top`: the state of a host, live, as a full screen, a table or JSON.

One state stands behind all of them, that of `web/state.py`: a daemon's, or that of probes of our own. Only
screen.py imports urwid.
"""
