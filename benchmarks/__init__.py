"""dajax beside its peers: same weights, same pixels, one process, interleaved. Not in the wheel."""
