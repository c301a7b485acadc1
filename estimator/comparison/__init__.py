"""Two arms with a few seeds each: is one better, by how much, and how sure is that?"""
