def write_report(study, results, page):
    raise NotImplementedError
