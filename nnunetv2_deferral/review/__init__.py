"""The review page: experts answer, in the browser, exactly the regions that were routed to them.

`server.py` speaks HTTP and says how requests run side by side, `access.py` decides who is asking, `service.py` what
they get, `rules.py` what they may change; `study.py` reads the predictions, `geometry.py` turns arrays between the
file's orientation and the browser's, `store.py` and `durable.py` keep the answers on disk, `static/` is the page.
"""
