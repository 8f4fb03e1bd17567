"""stub"""
class Scheduler:
    bootstrap_state = ""
    def __init__(self, *a): pass
    def run(self, stopping, say): stopping.wait()
    def close(self): pass
