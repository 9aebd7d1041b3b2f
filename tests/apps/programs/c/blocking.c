/* The plainest reader: a blocking recv(). That it says "try again" is an error: it was not asked not to wait. */
#include "stream.h"
