def check_instances(*a,**k): pass
