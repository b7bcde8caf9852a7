"""The review page: experts annotate the regions that were routed to them in the browser.

`server.py` handles HTTP and concurrency, `access.py` authentication, `service.py` the requests, `edits.py` the checks
of edits, `remarks.py` those of confidence and flags, and `upload.py` those of uploaded masks. `study.py` reads
predictions, images and references, `visits.py` numbers the regions, `windows.py` lists the grey-level windows,
`store.py` keeps the answers on disk and `results.py` computes the results. `static/` has the page.
"""
