module merlab.test/apps

go 1.24
